// Package app wires the scaler: configuration, clients, the loop and the HTTP
// server. It is started by a program that owns signals and environment, or by a
// test that has neither.
package app
