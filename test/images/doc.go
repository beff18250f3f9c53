// Package images tests the scripts that build the images, with stand-ins for the programs
// that they call. test/e2e builds the images themselves.
package images
