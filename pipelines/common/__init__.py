"""What every room needs: commands, files, the processor, kinds of images, alignment."""
