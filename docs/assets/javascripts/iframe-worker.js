// Search runs in a web worker, which browsers refuse to start for a page that was opened from the
// file system. There, and only there, the same script runs in a hidden frame instead.
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super();
      const frame = document.createElement("iframe");
      frame.hidden = true;
      document.documentElement.append(frame);
      // Some browsers would replace the first empty document later; one that was written stays.
      frame.contentDocument.open();
      frame.contentDocument.write("<!doctype html>");
      frame.contentDocument.close();
      this.scope = frame.contentWindow;
      this.waiting = [];
      this.scope.postMessage = (data) =>
        this.dispatchEvent(new MessageEvent("message", { data }));
      const script = this.scope.document.createElement("script");
      script.src = url;
      script.onload = () => {
        const waiting = this.waiting;
        this.waiting = null;
        for (const data of waiting) this.deliver(data);
      };
      this.scope.document.documentElement.append(script);
    }

    postMessage(data) {
      if (this.waiting === null) this.deliver(data);
      else this.waiting.push(data);
    }

    deliver(data) {
      this.scope.dispatchEvent(new MessageEvent("message", { data }));
    }
  };
}
