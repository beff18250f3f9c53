// Package structure holds the rules of this repository that no compiler and no linter checks: which package may import
// which, where the environment may be read, what a pure package may call, that every package says what it is for, and
// that the documents agree with the code. It has tests only.
package structure
