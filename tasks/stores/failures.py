"""How stores fail; a module apart, as a served model asks no store and has not the libraries named here."""

from boto3.exceptions import Boto3Error
from botocore.exceptions import BotoCoreError, ClientError
from mlflow.exceptions import MlflowException
from sqlalchemy.exc import SQLAlchemyError

REGISTRY = (MlflowException, SQLAlchemyError, OSError, Boto3Error, BotoCoreError, ClientError)
"""What a client of MLflow raises where its server, its database or the store of its files fails."""
