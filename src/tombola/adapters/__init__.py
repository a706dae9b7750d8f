"""Other people's training loops, where ``tombola.attach`` alone is not enough. Each file needs one library more."""
