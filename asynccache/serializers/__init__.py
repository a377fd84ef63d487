"""The serializers that come with the package."""
