"""Which data engine runs the relational expressions: DuckDB in this process, or Spark where one machine is too small."""

from typing import Any, Literal

from worldpm.errors import ConfigError

Engine = Literal["duckdb", "spark"]
SPARK = {"spark.master": "local[*]", "spark.app.name": "worldpm", "spark.ui.enabled": "false", "spark.sql.session.timeZone": "UTC",
         "spark.sql.shuffle.partitions": "16", "spark.sql.execution.arrow.maxRecordsPerBatch": "1024"}  # fmt: skip
"""Of a session, where `spark-submit` or its files do not say otherwise."""


def spark_session() -> Any:
    """The Spark that `spark-submit` names, or else a local one.

    Raises:
        ConfigError: If Spark or Java is not there.
    """
    try:
        from pyspark import SparkConf
        from pyspark.errors import PySparkException
        from pyspark.sql import SparkSession
    except ImportError as error:
        raise ConfigError("--engine spark needs pyspark, and Java 17: pip install 'worldpm[spark]'") from error
    try:
        settings = SparkConf()
        for name, value in SPARK.items():
            settings.setIfMissing(name, value)
        return SparkSession.builder.config(conf=settings).getOrCreate()
    except (PySparkException, OSError, RuntimeError) as error:
        raise ConfigError(f"Spark does not start ({str(error).splitlines()[0]}); it needs Java 17") from error
