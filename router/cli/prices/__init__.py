"""``routerctl prices``: a document's prices and the catalogue of genai-prices.

The only folder that knows that package; nothing here is imported while calls are served.
"""
