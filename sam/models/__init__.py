"""Model families behind one protocol: see `base.Segmenter`; `families` loads them and recognises other packs' models."""
