-- One database each for Prefect and MLflow. Both fill theirs themselves.
CREATE DATABASE prefect;
CREATE DATABASE mlflow;
