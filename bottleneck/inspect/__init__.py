"""What a person looks at: status, comparison, similar images, and the report with its pages and plots.

Imports `heads` and what is below it; no Ray.
"""
