// A camera in Go: it logs predictions and sends images to the cloud for inference.
//
//	buf generate
//	go run . log   -device gate-1
//	go run . infer -timeout 8s picture.jpg
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/local"
	"google.golang.org/grpc/status"
)

// gRPC itself waits for a service that is away and tries again, until the deadline of the call.
// Every call of Sightline may be repeated: a logged prediction has its sequence, a request its
// idempotency key. ABORTED means that an earlier try is still being answered.
const serviceConfig = `{"methodConfig": [{
	"name": [{}],
	"waitForReady": true,
	"retryPolicy": {
		"maxAttempts": 5,
		"initialBackoff": "0.2s",
		"maxBackoff": "2s",
		"backoffMultiplier": 2,
		"retryableStatusCodes": ["UNAVAILABLE", "ABORTED"]
	}
}]}`

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, explain(err))
		os.Exit(1)
	}
}

func run(ctx context.Context, arguments []string) error {
	if len(arguments) > 0 && arguments[0] == "log" {
		return runLog(ctx, arguments[1:])
	}
	if len(arguments) > 0 && arguments[0] == "infer" {
		return runInfer(ctx, arguments[1:])
	}
	return fmt.Errorf("usage: camera log|infer [flags]; -help lists them")
}

// connection holds the options that every command has for the service.
type connection struct {
	target, caFile, keyFile string
	timeout                 time.Duration
}

func (c *connection) register(flags *flag.FlagSet, target string, timeout time.Duration) {
	flags.StringVar(&c.target, "target", target, "address of the service, host:port")
	flags.StringVar(&c.caFile, "ca-file", "", "authorities to trust (PEM); none: plain text, this machine only")
	flags.StringVar(&c.keyFile, "api-key-file", "", "file that holds the API key or JWT; none: none is sent")
	flags.DurationVar(&c.timeout, "timeout", timeout, "time for the whole, retries included")
}

func (c *connection) open() (*grpc.ClientConn, error) {
	// These credentials refuse to talk to another machine, so that no key goes there in plain text.
	transport := local.NewCredentials()
	if c.caFile != "" {
		var err error
		if transport, err = credentials.NewClientTLSFromFile(c.caFile, ""); err != nil {
			return nil, err
		}
	}
	options := []grpc.DialOption{
		grpc.WithTransportCredentials(transport),
		grpc.WithDefaultServiceConfig(serviceConfig),
	}
	if c.keyFile != "" {
		options = append(options, grpc.WithPerRPCCredentials(bearer(c.keyFile)))
	}
	return grpc.NewClient(c.target, options...)
}

// bearer is the name of the file that holds the credential. It is read anew for every call, so
// that the key can be replaced while the program runs.
type bearer string

func (file bearer) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	key, err := os.ReadFile(string(file))
	if err != nil {
		return nil, err
	}
	return map[string]string{"authorization": "Bearer " + strings.TrimSpace(string(key))}, nil
}

// The transport sees to it; see open.
func (bearer) RequireTransportSecurity() bool { return false }

// explain puts the reason and the category that Sightline gives beside an error's message.
func explain(err error) string {
	failed, ok := status.FromError(err)
	if !ok {
		return err.Error()
	}
	text := fmt.Sprintf("%s: %s", failed.Code(), failed.Message())
	for _, detail := range failed.Details() {
		if info, ok := detail.(*errdetails.ErrorInfo); ok {
			text += fmt.Sprintf(" (%s, category %s)", info.GetReason(), info.GetMetadata()["category"])
		}
	}
	return text
}
