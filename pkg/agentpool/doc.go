// Package agentpool holds the words that every other package speaks: job
// requests, demands, capabilities, agents, classes of agent and the Jobs made
// for them. It is a leaf: it imports the standard library alone, and nothing in
// it acts on anything.
package agentpool
