# With `--segments-url s3://BUCKET/PREFIX` history lies in a bucket as plain Parquet: Polars reads it there, without us.
# Arguments: s3://BUCKET/PREFIX/CLUSTER_ID and the segments of a view, as `select artifact from system.segments where …`
# names them. AWS_… in the environment says where the bucket is and who asks.
import sys

import polars

folder, *segments = sys.argv[1:]
frame = polars.scan_parquet([f"{folder}/{segment}.parquet" for segment in segments]).select(
    polars.len().alias("rows"), polars.col("deleted").sum(), polars.col("trips").sum()
)
rows, deleted, trips = frame.collect().row(0)
print(f"polars {rows} rows, {deleted} deleted, trips {trips}")
