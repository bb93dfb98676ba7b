"""Records on local disk until they are shipped: workers append them, the agent reads them."""
