import { Alert, Button, Code, Stack, Text } from "@mantine/core";
import { Component, type ReactNode } from "react";
import css from "./shell.module.css";

/** A page that breaks says so, and leaves the others alone. */
export class ErrorBoundary extends Component<{ children: ReactNode }, { error?: Error }> {
  override state: { error?: Error } = {};

  static getDerivedStateFromError(error: Error) {
    return { error };
  }

  override render() {
    const { error } = this.state;
    if (!error) return this.props.children;
    // After an upgrade, the scripts of the version before are gone.
    const outdated = /dynamically imported module|module script|preload CSS/i.test(error.message);
    return (
      <div className={css.page}>
        <Alert color="red" variant="outline" title={outdated ? "This page could not be loaded" : "This page has failed"} role="alert">
          <Stack align="flex-start" gap="sm">
            <Text size="md">
              {outdated
                ? "The replica may have been upgraded since this page was opened, or it does not answer."
                : "That is a fault in Tocsin's UI; the replica itself goes on. What happened:"}
            </Text>
            {!outdated && <Code block>{error.message}</Code>}
            <Button size="xs" onClick={() => location.reload()}>
              Load again
            </Button>
          </Stack>
        </Alert>
      </div>
    );
  }
}
