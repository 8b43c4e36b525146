"""Structures as padded graphs: conversion from ASE, data sets, buckets of equal length."""
