"""Masks as data: COCO instance JSON, YOLO segmentation text, and PNGs with a manifest. Numpy and PIL only."""
