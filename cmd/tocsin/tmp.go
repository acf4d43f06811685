package main

func manual() string { return "" }
