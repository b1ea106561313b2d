"""What must be known of a Hugging Face decoder: its sites, its files, its skeleton."""
