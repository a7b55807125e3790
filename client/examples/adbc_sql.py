# SQL over features, history and the registry with a stock ADBC driver. CAIRN_NODE is HOST:PORT of any node.
import os

import adbc_driver_flightsql.dbapi as flightsql

with flightsql.connect("grpc://" + os.environ.get("CAIRN_NODE", "127.0.0.1:7700"), autocommit=True) as db:
    tables = db.adbc_get_objects(depth="tables", db_schema_filter="default").read_all().to_pylist()
    print("tables", [it["table_name"] for it in tables[0]["catalog_db_schemas"][0]["db_schema_tables"]])
    print("columns", db.adbc_get_table_schema("stats").names)
    with db.cursor() as cursor:
        cursor.execute("select driver_id, trips from stats order by driver_id")
        print("newest", cursor.fetch_arrow_table().to_pylist())
        cursor.execute("select driver_id, trips from as_of('stats', '2013-06-01T00:00:15Z') order by driver_id")
        print("then", cursor.fetchall())
        cursor.execute("select feature, type from system.features where feature_view = 'stats' order by feature")
        print("features", cursor.fetchall())
        try:
            cursor.execute("delete from stats")
        except flightsql.Error as error:
            print("refused", error)
