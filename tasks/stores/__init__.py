"""The outside world, one file a client: video files, S3, MLflow."""
