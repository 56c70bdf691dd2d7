"""Reading pictures and folders of pictures."""
