"""What is learnt: each file one objective, (model, batch) -> losses by name.

MaskedVolume   S1  hidden voxels of the body from those around them
ReportText     S1, TAPT  the next token of a report
Align          S2  image and report of one study are alike, findings beside it
Fuse           S3  findings, report, and whether a report is of this image
Together       several on one batch: DAPT is MaskedVolume, ReportText and Align
"""
