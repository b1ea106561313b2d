/* The registers of AMX: eight tiles of 16 rows of 64 bytes. */

#include <immintrin.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <unistd.h>

#define TILE 1024       /* bytes of a tile */
#define SIDE 16         /* rows of a tile; numbers of 32 bits in a row */
#define PAIR (2 * SIDE) /* rows whose sums fill four tiles with as many columns */
#define PERMISSION 0x1023, 18 /* of Linux: a process asks for these registers */

typedef struct {
    uint8_t palette, start_row, reserved[14];
    uint16_t bytes[16];
    uint8_t rows[16];
} __attribute__((packed)) Layout;

static int has_tiles(void) { return syscall(SYS_arch_prctl, PERMISSION) == 0; }

static void begin_tiles(void) {
    Layout layout = {.palette = 1};
    for (int t = 0; t < 8; t++) layout.bytes[t] = 64, layout.rows[t] = SIDE;
    /* GCC 12.2 takes its intrinsic to read 8 bytes of the layout, and does not write the others */
    __asm__ volatile("ldtilecfg %0" : : "m"(layout));
}

/* What was written to memory is there for tiles: GCC does not know that loading a tile reads memory. */
static inline void finish_writing(void) { __asm__ volatile("" : : : "memory"); }
