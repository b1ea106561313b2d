"""What a run will take, known before it begins: memory, disk, time."""
