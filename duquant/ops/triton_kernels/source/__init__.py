"""What Triton compiles; these modules import it, and are imported where a kernel is launched."""
