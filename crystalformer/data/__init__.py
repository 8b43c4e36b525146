"""Crystals as sequences of Wyckoff sites: conversion from structures, data sets, primitive cells."""
