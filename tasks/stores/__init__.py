"""The outside world, one file a client: video files, S3, MLflow. Nothing else in tasks imports these clients."""
