// Package understudyv1 is the wire format of Understudy, generated from the .proto files beside it:
// what sources and replicas say to each other. It isn't an API; nothing outside this module should
// need it.
package understudyv1
