// Package helloworld is the stock gRPC greeter's messages and service, generated from
// helloworld.proto. Nothing in it knows of replication.
package helloworld

// buf finds its template and its module in the folder above.
//go:generate sh -c "cd .. && go tool -modfile=../../tools/buf/go.mod buf generate"
