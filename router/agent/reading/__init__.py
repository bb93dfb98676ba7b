"""The spools of all writers, read and decoded as one stream in the order of the calls' ends."""
