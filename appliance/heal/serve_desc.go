package heal

import (
	"context"

	"github.com/thanos-io/thanos/pkg/info/infopb"
	"github.com/thanos-io/thanos/pkg/store/storepb"
	"google.golang.org/grpc"
)

// Thanos's generated code registers its services with a *grpc.Server only, and keeps their descriptions to itself. These
// say the same; a test compares them.
var (
	storeService = grpc.ServiceDesc{
		ServiceName: "thanos.Store",
		HandlerType: (*storepb.StoreServer)(nil),
		Methods: []grpc.MethodDesc{
			unary("/thanos.Store/", "LabelNames", storepb.StoreServer.LabelNames),
			unary("/thanos.Store/", "LabelValues", storepb.StoreServer.LabelValues),
		},
		Streams: []grpc.StreamDesc{{
			StreamName:    "Series",
			ServerStreams: true,
			Handler: func(srv any, stream grpc.ServerStream) error {
				in := &storepb.SeriesRequest{}
				if err := stream.RecvMsg(in); err != nil {
					return err
				}
				return srv.(storepb.StoreServer).Series(in, seriesStream{stream})
			},
		}},
		Metadata: "store/storepb/rpc.proto",
	}
	infoService = grpc.ServiceDesc{
		ServiceName: "thanos.info.Info",
		HandlerType: (*infopb.InfoServer)(nil),
		Methods:     []grpc.MethodDesc{unary("/thanos.info.Info/", "Info", infopb.InfoServer.Info)},
		Metadata:    "info/infopb/rpc.proto",
	}
)

// unary describes a method with one request and one answer.
func unary[S, In, Out any](service, name string, method func(S, context.Context, *In) (*Out, error)) grpc.MethodDesc {
	return grpc.MethodDesc{
		MethodName: name,
		Handler: func(srv any, ctx context.Context, dec func(any) error, through grpc.UnaryServerInterceptor) (any, error) {
			in := new(In)
			if err := dec(in); err != nil {
				return nil, err
			}
			call := func(ctx context.Context, in any) (any, error) { return method(srv.(S), ctx, in.(*In)) }
			if through == nil {
				return call(ctx, in)
			}
			return through(ctx, in, &grpc.UnaryServerInfo{Server: srv, FullMethod: service + name}, call)
		},
	}
}

// seriesStream is the answer to Series.
type seriesStream struct{ grpc.ServerStream }

// Send sends one message.
func (s seriesStream) Send(r *storepb.SeriesResponse) error { return s.SendMsg(r) }
