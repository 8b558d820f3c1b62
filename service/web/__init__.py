"""HTTP only: requests to arrays, arrays to responses. Every number comes from `service.engine`."""
