"""What every room needs: commands, files, the processor, and of images kinds, headers, pixels, alignment, sheets."""
