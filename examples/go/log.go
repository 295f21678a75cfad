package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"slices"
	"time"

	"github.com/google/uuid"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	ingestv1 "sightline.example/camera/gen/sightline/ingest/v1"
	typesv1 "sightline.example/camera/gen/sightline/types/v1"
)

// A message may hold 10 000 predictions and 4 MiB; from some tens on, larger ones gain little.
const batchSize = 32

// `device_monotonic` counts from its monotonic reading.
var started = time.Now()

func runLog(ctx context.Context, arguments []string) error {
	flags := flag.NewFlagSet("log", flag.ExitOnError)
	var to connection
	to.register(flags, "127.0.0.1:50051", 30*time.Second)
	device := flags.String("device", "gate-go", "name of this device, unique in the fleet")
	spool := flags.String("spool", uuid.NewString(), "UUID of the spool; run again with it to go on")
	count := flags.Int64("count", 100, "predictions that the spool holds")
	if err := flags.Parse(arguments); err != nil {
		return err
	}
	connection, err := to.open()
	if err != nil {
		return err
	}
	defer connection.Close()
	ctx, cancel := context.WithTimeout(ctx, to.timeout)
	defer cancel()

	client := ingestv1.NewIngestServiceClient(connection)
	// Predictions that are committed already are not sent again. The same prediction again would be a duplicate,
	// which is success; another one under its sequence is refused (SEQUENCE_CONFLICT).
	mark, err := client.GetWatermark(ctx, &ingestv1.GetWatermarkRequest{DeviceId: *device, SpoolId: *spool})
	if err != nil {
		return err
	}
	fmt.Fprintf(os.Stderr, "spool %s is committed through %d\n", *spool, mark.GetCommittedThrough())
	header := &ingestv1.LogHeader{
		DeviceId: *device,
		SpoolId:  *spool,
		// Both clocks as they are: the service notes how far the first is off.
		DeviceTime:      timestamppb.Now(),
		DeviceMonotonic: durationpb.New(time.Since(started)),
		Client:          "go-example",
	}
	answer, err := logAll(ctx, client, header, spooled(mark.GetCommittedThrough()+1, *count))
	if err != nil {
		return err
	}
	// Only now a device may delete what it keeps, up to this sequence.
	fmt.Println(protojson.MarshalOptions{EmitUnpopulated: true}.Format(answer))
	fmt.Fprintf(os.Stderr, "committed_through: %d\n", answer.GetCommittedThrough())
	return nil
}

// logAll streams predictions in batches and returns the one answer, which comes when all of them
// are committed. After an error, GetWatermark says how far it came.
func logAll(
	ctx context.Context,
	client ingestv1.IngestServiceClient,
	header *ingestv1.LogHeader,
	predictions []*typesv1.Prediction,
) (*ingestv1.PredictionLogResponse, error) {
	stream, err := client.PredictionLog(ctx)
	if err != nil {
		return nil, err
	}
	messages := []*ingestv1.PredictionLogRequest{{Header: header}}
	for batch := range slices.Chunk(predictions, batchSize) {
		messages = append(messages, &ingestv1.PredictionLogRequest{Predictions: batch})
	}
	for _, message := range messages {
		// io.EOF: the service has ended the stream, and CloseAndRecv says why.
		if err := stream.Send(message); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return nil, err
		}
	}
	return stream.CloseAndRecv()
}

var firstCapture = time.Date(2025, 1, 1, 0, 0, 0, 0, time.UTC)

// spooled stands for what a device keeps on its disk until it is committed, so it is the same each
// time. A sequence belongs to its prediction for ever, and none may be missing: what is lost is
// declared as a gap. A device that has lost what it kept goes on with a new spool, never with the
// old one.
func spooled(first, last int64) []*typesv1.Prediction {
	var predictions []*typesv1.Prediction
	for sequence := first; sequence <= last; sequence++ {
		predictions = append(predictions, &typesv1.Prediction{
			Sequence:      sequence,
			ImageId:       fmt.Sprintf("part-%06d", sequence),
			ImageWidth:    1920,
			ImageHeight:   1080,
			ModelName:     "plates",
			ModelVersion:  "1",
			Source:        typesv1.PredictionSource_PREDICTION_SOURCE_DEVICE,
			CapturedAt:    timestamppb.New(firstCapture.Add(time.Duration(sequence) * time.Second)),
			InferenceTime: durationpb.New(12 * time.Millisecond),
			Detections: []*typesv1.Detection{{
				ClassId:    1,
				ClassName:  "pit",
				Confidence: 0.91,
				// Pixels of the upright image, from its top left corner.
				Box: &typesv1.BoundingBox{XMin: 10, YMin: 20, XMax: 30.5, YMax: 40},
			}},
			DefectDetected: proto.Bool(true),
			Labels:         map[string]string{"line": "4"},
		})
	}
	return predictions
}
