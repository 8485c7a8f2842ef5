"""Tars in object storage: addresses such as s3://bucket/shards/000.tar."""
