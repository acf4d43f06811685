import "./app/mantine";
import "./app/styles.css";
import { MantineProvider } from "@mantine/core";
import { QueryClientProvider } from "@tanstack/react-query";
import { setNonce } from "get-nonce";
import { createRoot } from "react-dom/client";
import { Router } from "wouter";
import { basePath } from "./api/client";
import { queryClient } from "./api/hooks";
import { bootSettings } from "./api/types";
import { Shell } from "./app/Shell";
import { theme, variables } from "./app/theme";
import { SettingsProvider } from "./lib/settings";

// For what locks scrolling behind dialogs, deep inside Mantine.
setNonce(bootSettings().nonce ?? "");

createRoot(document.getElementById("root")!).render(
  <MantineProvider
    theme={theme}
    cssVariablesResolver={variables}
    defaultColorScheme="auto"
    getStyleNonce={() => bootSettings().nonce ?? ""}
  >
    <QueryClientProvider client={queryClient}>
      <SettingsProvider>
        <Router base={basePath().replace(/\/$/, "")}>
          <Shell />
        </Router>
      </SettingsProvider>
    </QueryClientProvider>
  </MantineProvider>,
);
