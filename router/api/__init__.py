"""HTTP: reads requests, renders replies, walks the pipeline. Owns Flask; decides no policy."""
