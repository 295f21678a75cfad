package main

import (
	"context"
	"crypto/sha256"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/google/uuid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/encoding/protojson"

	inferencev1 "sightline.example/camera/gen/sightline/inference/v1"
)

func runInfer(ctx context.Context, arguments []string) error {
	flags := flag.NewFlagSet("infer", flag.ExitOnError)
	var to connection
	to.register(flags, "127.0.0.1:50052", 8*time.Second)
	model := flags.String("model", "", "model that should answer; empty: the service's default")
	if err := flags.Parse(arguments); err != nil {
		return err
	}
	if flags.NArg() != 1 {
		return fmt.Errorf("usage: camera infer [flags] PICTURE")
	}
	picture, err := os.ReadFile(flags.Arg(0))
	if err != nil {
		return err
	}
	connection, err := to.open()
	if err != nil {
		return err
	}
	defer connection.Close()
	// The service sees the deadline, too, and refuses at once what it could not answer in time.
	ctx, cancel := context.WithTimeout(ctx, to.timeout)
	defer cancel()

	client := inferencev1.NewInferenceServiceClient(connection)
	return ask(ctx, client, filepath.Base(flags.Arg(0)), *model, picture)
}

// ask sends one image and prints the answer as JSON.
func ask(
	ctx context.Context,
	client inferencev1.InferenceServiceClient,
	name, model string,
	picture []byte,
) error {
	// One key for one request: however often gRPC retries, the model runs once, and all tries get
	// its answer. The next image needs a new key.
	ctx = metadata.AppendToOutgoingContext(ctx, "idempotency-key", uuid.NewString())
	sum := sha256.Sum256(picture)
	request := &inferencev1.InferRequest{
		Images: []*inferencev1.Image{{
			ImageId: name,
			Source:  &inferencev1.Image_Data{Data: picture},
			Sha256:  sum[:], // an image that was damaged on its way is refused
		}},
	}
	if model != "" {
		request.Model = &inferencev1.ModelHint{Name: model}
	}
	var trailer metadata.MD
	answer, err := client.Infer(
		ctx,
		request,
		grpc.Trailer(&trailer),
		// gRPC retries only calls that fit its buffer, by default 256 KiB: less than many images.
		grpc.MaxRetryRPCBufferSize(len(picture)+64<<10),
	)
	if err != nil {
		return err
	}
	how := ""
	if len(trailer.Get("idempotent-replayed")) > 0 {
		how = " (a replay of the answer to an earlier try)"
	}
	fmt.Fprintf(os.Stderr, "answered by %s %s%s\n", answer.GetModelName(), answer.GetModelVersion(), how)
	fmt.Println(protojson.Format(answer))
	return nil
}
