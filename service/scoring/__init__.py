"""Scores of any number of images, as Parquet files: `logpx score`, and `scorer.Scorer` for other programs' workers."""
