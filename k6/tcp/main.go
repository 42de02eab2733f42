// k6 with raw TCP sockets (`k6/x/tcp`) built in. Only the main function of k6 and one import beside it, which is all
// that xk6 would generate.
package main

import (
	"go.k6.io/k6/cmd"

	_ "pilegate/k6tcp/tcp"
)

func main() {
	cmd.Execute()
}
