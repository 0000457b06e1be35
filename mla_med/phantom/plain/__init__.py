"""The plain chest that the packaged checkpoint was trained on. It goes when that is trained anew."""
