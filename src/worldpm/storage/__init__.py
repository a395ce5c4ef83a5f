"""Files on disk: folders with a manifest, Parquet tables and their schemas, the data engine, worker
processes."""
