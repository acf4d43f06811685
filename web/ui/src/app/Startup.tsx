import { Button, Group, Progress, Stack, Text, Title } from "@mantine/core";
import { useQuery } from "@tanstack/react-query";
import { type ReactNode, useState } from "react";
import { ApiError, requestPrometheus, requestText } from "../api/client";
import css from "./shell.module.css";

type Readiness = { ready: true } | { ready: false; sentence: string; offline?: boolean };

function useReadiness(): Readiness {
  const { data } = useQuery<Readiness>({
    queryKey: ["ready"],
    queryFn: async ({ signal }) => {
      try {
        await requestText("-/ready", { signal });
        return { ready: true };
      } catch (err) {
        if (!(err instanceof ApiError)) throw err;
        return { ready: false, sentence: err.message.replace(/^Service Unavailable:\s*/, ""), offline: err.status === 0 };
      }
    },
    retry: false,
    // Often while something changes, and seldom while all is well.
    refetchInterval: (q) => (q.state.data?.ready === false ? 1000 : 10_000),
  });
  return data ?? { ready: true };
}

interface Replay {
  min: number;
  max: number;
  current: number;
}

/** While the replica starts, how far it is; the pages are there for who wants them, because others answer meanwhile. */
export function Startup({ children }: { children: ReactNode }) {
  const state = useReadiness();
  const [anyway, setAnyway] = useState(false);
  const [wasReady, setWasReady] = useState(false);
  if (state.ready && !wasReady) setWasReady(true);
  if (state.ready) return children;
  // Who was at work keeps what was on the screen.
  if (anyway || wasReady || state.offline) {
    return (
      <>
        <div className={css.offline} role="status">
          {state.offline ? state.sentence : `Not ready: ${state.sentence}`}
        </div>
        {children}
      </>
    );
  }
  return <Starting sentence={state.sentence} onAnyway={() => setAnyway(true)} />;
}

function Starting({ sentence, onAnyway }: { sentence: string; onAnyway: () => void }) {
  const { data } = useQuery({
    queryKey: ["walreplay"],
    queryFn: async ({ signal }) => (await requestPrometheus<Replay>("status/walreplay", { signal })).data,
    retry: false,
    refetchInterval: 1000,
  });
  const total = data ? data.max - data.min + 1 : 0;
  const done = data && data.max > 0 ? Math.min(total, Math.max(0, data.current - data.min + 1)) : 0;
  return (
    <div className={css.page}>
      <Stack maw={560} mx="auto" mt="12vh" gap="sm">
        <Title order={1}>Tocsin is starting</Title>
        <Text role="status">{sentence === "" ? "It is not ready yet." : `${sentence[0]!.toUpperCase()}${sentence.slice(1)}.`}</Text>
        {data && data.max > 0 && (
          <>
            <Progress value={(done / total) * 100} aria-label="Replay of the write-ahead log" />
            <Text size="sm" c="dimmed">
              Write-ahead log: segment {data.current} of {data.max}
            </Text>
          </>
        )}
        <Group>
          <Button variant="default" size="xs" onClick={onAnyway}>
            Show the pages anyway
          </Button>
        </Group>
      </Stack>
    </div>
  );
}
