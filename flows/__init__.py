"""When and where the pipeline runs. The only room that imports prefect."""
