"""The whole job: the run folder, and the pipeline that goes through every stage."""
