"""The shape of the configuration document and the rules between its parts."""
