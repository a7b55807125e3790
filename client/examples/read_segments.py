# History in segments is plain Parquet: DuckDB and Polars read it without us. Argument: a folder with segments, as
# `cairn segments --fetch FOLDER` makes one.
import sys

import duckdb
import polars

files = sys.argv[1] + "/*.parquet"
((rows, deleted, trips),) = duckdb.sql(
    f"select count(*), count(*) filter (where deleted), sum(trips) from read_parquet('{files}')"
).fetchall()
print(f"duckdb {rows} rows, {deleted} deleted, trips {trips}")
frame = polars.scan_parquet(files).select(
    polars.len().alias("rows"), polars.col("deleted").sum(), polars.col("trips").sum()
)
rows, deleted, trips = frame.collect().row(0)
print(f"polars {rows} rows, {deleted} deleted, trips {trips}")
